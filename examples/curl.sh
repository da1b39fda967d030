#!/usr/bin/env bash
# Everything POST /api/chat does, with curl.    API_TOKEN=a-long-secret examples/curl.sh ["a question"]
# Magpie runs with BOT_ADAPTERS=api (or webchat,api) and the same API_TOKEN; MAGPIE_URL says where.
set -euo pipefail

: "${API_TOKEN:?the same value as in the .env of Magpie}"
url=${MAGPIE_URL:-http://127.0.0.1:8080}/api/chat
question=${1:-Hello! What can you do?}
id=$(date +%s)-$$

json() { # "text" -> a JSON string
  printf '%s' "$1" | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e '1s/^/"/' -e '$s/$/"/'
}

ask() { # ask BODY [CURL OPTIONS]
  curl --silent --show-error --no-buffer --max-time 310 "$url" \
    --header "Authorization: Bearer $API_TOKEN" --header "Content-Type: application/json" --data "$1" "${@:2}"
  echo
}

echo "-- the whole answer"
ask "{\"user\": \"curl\", \"message\": $(json "$question"), \"id\": \"$id\"}"

echo "-- the same id again: the same answer, not paid for twice"
ask "{\"user\": \"curl\", \"message\": $(json "$question"), \"id\": \"$id\"}"

echo "-- as it is written"
ask "{\"user\": \"curl\", \"message\": \"And in one sentence?\"}" --header "Accept: text/event-stream"

echo "-- another conversation knows nothing of it"
ask "{\"user\": \"curl\", \"message\": \"/usage\", \"conversation\": \"second\"}"

echo "-- a wrong token"
API_TOKEN=wrong ask "{\"user\": \"curl\", \"message\": \"hi\"}"
