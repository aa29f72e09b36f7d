-- Heads are counted again from the first event: those of videos are among them now.
TRUNCATE log_heads, sealed_heads;

-- Of each 256 heads, in order: the first key (16 bytes), and the root of their tree (32 bytes). With them, a proof reads
-- 256 heads, however many there are.
ALTER TABLE sealed_heads ADD COLUMN blocks bytea NOT NULL CHECK (length(blocks) % 48 = 0);
