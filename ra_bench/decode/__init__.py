"""Live decoding: any registered index serves a real model's attention."""
