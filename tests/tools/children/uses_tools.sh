# For each message runs its first argument, as an agent runs a tool, and says so.
echo '{"type":"ready"}'
read -r session
while read -r message; do
  sh -c "$1" </dev/null >/dev/null 2>&1
  echo '{"type":"output","data":"done"}'
done
