-- +goose Up

-- Which releases can work with this schema. A release is known by the newest migration that it was built with.
-- Where a migration only adds, older releases go on, and oldest_release stays as it is. A migration that takes away
-- what an older release uses raises oldest_release, and such a release then says that it is not ready.
CREATE TABLE IF NOT EXISTS schema_support (
    only_row       boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    oldest_release integer NOT NULL
);
INSERT INTO schema_support (oldest_release) VALUES (5) ON CONFLICT DO NOTHING;

-- +goose Down
-- Nothing: older releases don't look at it.
SELECT 1;
