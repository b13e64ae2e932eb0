# The program of this folder that the metadata name.
name=${JIDO_METADATA#*'"program":"'}
exec sh "$(dirname "$0")/${name%%'"'*}"
