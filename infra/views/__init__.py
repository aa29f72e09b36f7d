"""What reads of views, and operators of views, need beside the projections themselves."""
