-- What agents bring along: servers that members lend from their own machines, and skills.

-- Only persistent ones: the others end with the connection that lends them. registration counts: what is noted about one
-- registration must not touch a later one. offline_since is empty while its host was last seen connected.
CREATE TABLE live_server (
    mesh_id       TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    name          TEXT   NOT NULL,
    member_id     TEXT   NOT NULL REFERENCES member (id),
    description   TEXT   NOT NULL,
    tools         TEXT   NOT NULL,
    registration  BIGINT NOT NULL,
    offline_since BIGINT,
    PRIMARY KEY (mesh_id, name)
);

-- size: bytes of the instructions and of all files, decoded.
CREATE TABLE skill (
    mesh_id      TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    name         TEXT   NOT NULL,
    author       TEXT   NOT NULL REFERENCES member (id),
    description  TEXT   NOT NULL,
    instructions TEXT   NOT NULL,
    tags         TEXT   NOT NULL,
    manifest     TEXT,
    size         BIGINT NOT NULL CHECK (size >= 0),
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, name)
);

-- content is base64.
CREATE TABLE skill_file (
    mesh_id    TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    path       TEXT   NOT NULL,
    content    TEXT   NOT NULL,
    executable BIGINT NOT NULL CHECK (executable IN (0, 1)),
    PRIMARY KEY (mesh_id, name, path),
    FOREIGN KEY (mesh_id, name) REFERENCES skill (mesh_id, name) ON DELETE CASCADE
);
