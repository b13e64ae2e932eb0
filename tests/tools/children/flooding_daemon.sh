# Leaves its group, and goes on to write.
setsid yes '{"type":"output","data":"x","ephemeral":true}' &
exec sleep 300
