"""The calls of members: cached, within budget and limits, hedged and retried."""
