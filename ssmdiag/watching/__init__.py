"""Memory while a model trains: `Watch` reads a live model every so many steps; callbacks; checkpoints as they are
written."""
