# Leaves its group, and goes on to write.
setsid yes '{"type":"output","data":"x"}' &
cat >/dev/null
