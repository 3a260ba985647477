"""Names of the kinds of units. Imports nothing, so that options can list them."""

KINDS = (
    "head",
    "kv_group",
    "qk_pair",
    "value_dim",
    "ffn_channel",
    "expert",
    "attention",
    "ffn",
    "layer",
    "in_channel",
    "out_channel",
)

WHOLE = ("attention", "ffn", "layer")
"""Those that are a whole branch or layer, with everything inside."""

USUAL = ("head", "ffn_channel", "expert")
"""Those that go where nobody says otherwise."""
