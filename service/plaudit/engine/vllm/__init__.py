"""The engine protocol over vLLM servers: they run the model, this package says what, and proves what it was given.

`wire` is what is said and heard, `server` one server, `fleet` all of them and who holds which adapter, `shelf` the
folder that they load from, `witness` how a server shows that it gives the same log-probs, `local` what this process
knows of the model without running it, `ticket` and `engine` the protocol.
"""
