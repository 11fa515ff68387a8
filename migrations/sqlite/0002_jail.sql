-- What the jail brings: what a mesh demands of it, what the runner was told of that, what was approved of each service, and
-- what became of its connections.

ALTER TABLE mesh ADD COLUMN min_isolation TEXT NOT NULL DEFAULT 'strict' CHECK (min_isolation IN ('light', 'strict'));
ALTER TABLE mesh ADD COLUMN min_release_age_s BIGINT NOT NULL DEFAULT 0 CHECK (min_release_age_s >= 0);

-- The policy under which the runner was last given a service. Another one than the mesh's, or no row: give it again.
CREATE TABLE applied_policy (
    mesh_id           TEXT   NOT NULL,
    name              TEXT   NOT NULL,
    min_isolation     TEXT   NOT NULL,
    min_release_age_s BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, name),
    FOREIGN KEY (mesh_id, name) REFERENCES service (mesh_id, name) ON DELETE CASCADE
);

-- items: kind, name and canonical definition of everything that was approved.
CREATE TABLE approval (
    mesh_id     TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    items       TEXT   NOT NULL,
    approved_by TEXT   NOT NULL REFERENCES member (id),
    approved_at BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, name),
    FOREIGN KEY (mesh_id, name) REFERENCES service (mesh_id, name) ON DELETE CASCADE
);

-- Counts grow within one life (boot) of the runner, so writing the same report twice changes nothing.
CREATE TABLE egress_decision (
    mesh_id        TEXT   NOT NULL,
    name           TEXT   NOT NULL,
    boot           TEXT   NOT NULL,
    host           TEXT   NOT NULL,
    port           BIGINT NOT NULL,
    verdict        TEXT   NOT NULL,
    count          BIGINT NOT NULL,
    last_ms        BIGINT NOT NULL,
    sent_bytes     BIGINT NOT NULL,
    received_bytes BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, name, boot, host, port, verdict),
    FOREIGN KEY (mesh_id, name) REFERENCES service (mesh_id, name) ON DELETE CASCADE
);
