-- +goose Up

-- What the latest completed sweep found, for operators. Null: none has completed since this migration.
ALTER TABLE sweep_state
    ADD COLUMN IF NOT EXISTS swept_at          timestamptz,
    ADD COLUMN IF NOT EXISTS pending           bigint,
    ADD COLUMN IF NOT EXISTS held_idr          bigint,
    ADD COLUMN IF NOT EXISTS oldest_pending_at timestamptz;

-- The verdicts of the latest reconciliations. A new one takes the slot of the oldest.
CREATE TABLE IF NOT EXISTS verdicts (
    slot     smallint    PRIMARY KEY,
    number   bigint      NOT NULL, -- counts the reconciliations
    told_at  timestamptz NOT NULL DEFAULT now(),
    verdict  text        NOT NULL CHECK (verdict IN ('agrees', 'differs', 'unknown')),
    breaches bigint      NOT NULL CHECK (breaches >= 0),
    words    text        NOT NULL
);

-- +goose Down
SELECT 1;
