# Ends with a line that has no newline.
printf '{"type":"output","data":"first"}\n{"type":"output","data":"last"}'
