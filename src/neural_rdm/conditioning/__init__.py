"""Floor 3: what a network is shown beside its noisy input: classes and texts, and their dropout for guidance.

Begin with `conditions`. `text` holds the frozen encoders of captions.
"""
