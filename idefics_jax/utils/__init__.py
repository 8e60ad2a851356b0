"""Files, streams and checks that every part uses."""
