#!/bin/sh
# Build an image, start its server, and ask it about one photo. Needs docker and curl; leaves nothing running.
#
#     deploy/try_image.sh [cpu|cuda] [PHOTO]

set -eu
cd "$(dirname "$0")/.."
kind=${1:-cpu}
photo=${2:-docs/nano_renders.png}
image=vlm-detect:$kind
gpus=
if [ "$kind" = cuda ]; then gpus="--gpus all"; fi

docker build -f "deploy/$kind.Dockerfile" -t "$image" .
test "$(docker run --rm --entrypoint id "$image" -u)" = 10001 || { echo "the image runs as root" >&2; exit 1; }

VLM_DETECT_API_KEY=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
export VLM_DETECT_API_KEY
# shellcheck disable=SC2086  # two words, or none
container=$(docker run -d --rm $gpus -e VLM_DETECT_API_KEY -p 127.0.0.1::8000 "$image")
trap 'docker stop "$container" > /dev/null' EXIT
address=$(docker port "$container" 8000)

tries=0
until [ "$(docker inspect -f '{{.State.Health.Status}}' "$container")" = healthy ]; do
    tries=$((tries + 1))
    test "$tries" -lt 100 || { docker logs "$container" >&2; echo "not healthy after 300 s" >&2; exit 1; }
    sleep 3
done
curl --fail --silent --show-error -H "Authorization: Bearer $VLM_DETECT_API_KEY" -F "image=@$photo" \
    "http://$address/v1/verdict"
echo
