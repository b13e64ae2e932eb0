# Writes without end, as fast as it can: what, is the first argument.
case $1 in
  outputs) exec yes '{"type":"output","data":"x"}' ;;
  tokens) exec yes '{"type":"output","data":"x","ephemeral":true}' ;;
  nonsense) exec yes ;;
  line) exec tr '\0' x </dev/zero ;;
  errors) exec yes 'noise' >&2 ;;
  error_line) exec tr '\0' x </dev/zero >&2 ;;
esac
