"""What a run asks of TPUs, known without one: compiled for a topology, counted, estimated (`pixel-align compile`)."""
