"""Answer images over HTTP with what a checkpoint says of them: task=serve."""
