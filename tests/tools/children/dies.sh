# Ends before it is ready.
echo 'no such model' >&2
exit 3
