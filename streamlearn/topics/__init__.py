"""Further passes of topic models: kept documents, and the sweeps that draw their topics anew."""
