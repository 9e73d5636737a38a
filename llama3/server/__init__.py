"""The hosted model's HTTP, on your own machine. Read: app, gate, answers, deadline, main. Needs the extra `server`."""
