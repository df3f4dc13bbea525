"""The life of a fit: begin, resume, plan, stream, launch."""
