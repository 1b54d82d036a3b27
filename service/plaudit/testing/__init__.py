"""Public test support: plugin conformance kit, toy language and toy models. Production code never imports it."""
