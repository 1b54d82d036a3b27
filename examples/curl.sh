#!/usr/bin/env bash
# Ask over the HTTP door and give a thumb, from a shell.
set -euo pipefail
url="${1:-http://127.0.0.1:8000/v1}"
headers="$(mktemp)"
trap 'rm -f "$headers"' EXIT

post() {
  curl --silent --show-error --fail-with-body --dump-header "$headers" \
    --header "authorization: Bearer ${PLAUDIT_KEY:-none}" --header "content-type: application/json" --data "$2" "$url$1"
  echo
}

post /chat/completions \
  '{"model": "instruction", "max_tokens": 16, "messages": [{"role": "user", "content": "Name a tree."}]}'

# The handle stands in a header too, so that no JSON need be read for it.
handle="$(sed -n 's/^x-plaudit-handle: *//p' "$headers" | tr -d '\r')"
post /feedback "{\"handle\": \"$handle\", \"rater\": \"ada\", \"thumbs\": {\"up\": true}}"
