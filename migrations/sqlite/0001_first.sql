-- The first schema: who is in a mesh, what they want hosted, and what was last seen of it.
--
-- ids and documents are TEXT, times and numbers BIGINT (times are milliseconds since the epoch), so that one SQL text and
-- one row type serve both databases. What is desired (service, generation) and what was observed (service_lists,
-- observed) are apart on purpose: only people write the first, only the runner's reports write the second.

CREATE TABLE mesh (
    id           TEXT   NOT NULL PRIMARY KEY,
    slug         TEXT   NOT NULL,
    name         TEXT   NOT NULL,
    owner_pubkey TEXT   NOT NULL,
    root_key     TEXT   NOT NULL,
    created_at   BIGINT NOT NULL
);
CREATE INDEX mesh_by_owner ON mesh (owner_pubkey);

-- A revoked member stays: its key must be refused as revoked, and its display name must not pass to somebody else,
-- because scopes may hold names.
CREATE TABLE member (
    id           TEXT   NOT NULL PRIMARY KEY,
    mesh_id      TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    pubkey       TEXT   NOT NULL,
    display_name TEXT   NOT NULL,
    role         TEXT   NOT NULL CHECK (role IN ('guest', 'member', 'admin', 'owner')),
    role_tag     TEXT,
    in_groups    TEXT   NOT NULL,
    message_mode TEXT   NOT NULL,
    joined_at    BIGINT NOT NULL,
    revoked_at   BIGINT,
    UNIQUE (mesh_id, pubkey),
    UNIQUE (mesh_id, display_name)
);

-- Only the hash of a token is kept: who reads the database can't join.
CREATE TABLE invite (
    token_sha256 TEXT   NOT NULL PRIMARY KEY,
    mesh_id      TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    role         TEXT   NOT NULL CHECK (role IN ('guest', 'member', 'admin')),
    preset       TEXT   NOT NULL,
    max_uses     BIGINT NOT NULL CHECK (max_uses > 0),
    used_count   BIGINT NOT NULL CHECK (used_count >= 0 AND used_count <= max_uses),
    expires_at   BIGINT NOT NULL,
    created_by   TEXT   NOT NULL REFERENCES member (id),
    created_at   BIGINT NOT NULL,
    revoked_at   BIGINT
);

CREATE TABLE upload (
    mesh_id    TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    sha256     TEXT   NOT NULL,
    member_id  TEXT   NOT NULL REFERENCES member (id),
    size       BIGINT NOT NULL,
    bytes      BLOB   NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, sha256)
);

-- target: the generation that should serve. latest: the newest that was ever asked for; a write must name its
-- successor, so of two deploys at once one fails instead of both being half applied.
-- wanted = 'gone' until the runner has confirmed that nothing is left; only then the row goes.
CREATE TABLE service (
    mesh_id           TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    name              TEXT   NOT NULL,
    deployed_by       TEXT   NOT NULL REFERENCES member (id),
    scope             TEXT   NOT NULL,
    wanted            TEXT   NOT NULL CHECK (wanted IN ('running', 'stopped', 'gone')),
    target            BIGINT NOT NULL CHECK (target <= latest),
    latest            BIGINT NOT NULL,
    failed_generation BIGINT,
    failed_reason     TEXT,
    created_at        BIGINT NOT NULL,
    updated_at        BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, name)
);

-- A row never changes after it was written, except that it becomes proven and gets its pin, once.
-- archive: the upload that the spec names, so that the database itself keeps an upload that is still needed.
CREATE TABLE generation (
    mesh_id     TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    generation  BIGINT NOT NULL,
    spec        TEXT   NOT NULL,
    secrets     TEXT,
    archive     TEXT,
    pin         TEXT,
    proven      BIGINT NOT NULL CHECK (proven IN (0, 1)),
    deployed_by TEXT   NOT NULL REFERENCES member (id),
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, name, generation),
    FOREIGN KEY (mesh_id, name) REFERENCES service (mesh_id, name) ON DELETE CASCADE,
    FOREIGN KEY (mesh_id, archive) REFERENCES upload (mesh_id, sha256)
);
CREATE INDEX generation_by_archive ON generation (mesh_id, archive);

CREATE TABLE service_lists (
    mesh_id    TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    lists      TEXT   NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, name),
    FOREIGN KEY (mesh_id, name) REFERENCES service (mesh_id, name) ON DELETE CASCADE
);

CREATE TABLE observed (
    mesh_id    TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    report     TEXT   NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, name),
    FOREIGN KEY (mesh_id, name) REFERENCES service (mesh_id, name) ON DELETE CASCADE
);
