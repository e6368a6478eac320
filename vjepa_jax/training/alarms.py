"""When a representation counts as collapsed: RankMe below 5 % of the channels, or features without spread."""

RANKME_ALARM = 0.05  # RankMe as a share of the feature dimension
STD_ALARM = 0.05  # mean standard deviation of normalised features across tokens
