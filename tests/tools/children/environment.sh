# Tells of its environment.
printf '{"type":"output","data":%s}\n' "$JIDO_METADATA"
printf '{"type":"output","data":"%s"}\n' "$JIDO_SESSION_ID" "${TRACEPARENT-none}" "${NATS_PASSWORD-none}" "${JIDO_X-none}"
read -r line
printf '{"type":"output","data":%s}\n' "$line"
exec cat >/dev/null
