-- What the vault brings: sealed entries that the broker can not open, the keys they are sealed to, who agreed to what, which
-- runners hold what, a ledger, and keys of its own for what the broker encrypts at rest.
--
-- owner and signer: a member's public key, which is what is signed and what a reference names.

-- Only the newest version of an entry has content and a wrap: an older one could not be opened any more. kid is the vault key
-- that the wrap is, or was at last, sealed to. kind = 'gone' is a version like the others, without content.
CREATE TABLE vault_entry (
    mesh_id    TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    owner      TEXT   NOT NULL,
    key_name   TEXT   NOT NULL,
    version    BIGINT NOT NULL CHECK (version > 0),
    kind       TEXT   NOT NULL CHECK (kind IN ('env', 'file', 'gone')),
    created_ms BIGINT NOT NULL,
    content    TEXT   NOT NULL,
    signature  TEXT   NOT NULL,
    kid        TEXT,
    wrap       TEXT,
    stored_at  BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, owner, key_name, version),
    FOREIGN KEY (mesh_id, owner) REFERENCES member (mesh_id, pubkey) ON DELETE CASCADE
);
-- Names that are gone and versions that were replaced stay as rows; most questions are about the others.
CREATE INDEX vault_entry_alive ON vault_entry (mesh_id, owner, key_name) WHERE wrap IS NOT NULL;
CREATE INDEX vault_entry_by_kid ON vault_entry (mesh_id, kid, owner, key_name) WHERE wrap IS NOT NULL;

-- The form of the original's clients, opaque.
CREATE TABLE vault_envelope (
    mesh_id     TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    owner       TEXT   NOT NULL,
    key_name    TEXT   NOT NULL,
    ciphertext  TEXT   NOT NULL,
    nonce       TEXT   NOT NULL,
    sealed_key  TEXT   NOT NULL,
    entry_type  TEXT   NOT NULL CHECK (entry_type IN ('env', 'file')),
    mount_path  TEXT,
    description TEXT,
    updated_at  BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, owner, key_name),
    FOREIGN KEY (mesh_id, owner) REFERENCES member (mesh_id, pubkey) ON DELETE CASCADE
);

-- The mesh's vault keys: public halves, and the private half sealed to the mesh's owner.
CREATE TABLE vault_key (
    mesh_id    TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    number     BIGINT NOT NULL CHECK (number > 0),
    kid        TEXT   NOT NULL,
    public     TEXT   NOT NULL,
    created_ms BIGINT NOT NULL,
    signature  TEXT   NOT NULL,
    owner_copy TEXT   NOT NULL,
    PRIMARY KEY (mesh_id, number),
    UNIQUE (mesh_id, kid)
);

-- A boot key is here before anybody gets it, sealed under a root of the broker. It is of a runner, not of a mesh.
CREATE TABLE boot_key (
    boot_id    TEXT   NOT NULL PRIMARY KEY,
    sealed     TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE vault_runner (
    runner    TEXT   NOT NULL PRIMARY KEY,
    public    TEXT   NOT NULL,
    custody   TEXT   NOT NULL CHECK (custody IN ('split', 'file', 'memory')),
    boot_id   TEXT,
    seen_at   BIGINT NOT NULL
);

CREATE TABLE vault_grant (
    mesh_id   TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    runner    TEXT   NOT NULL,
    kid       TEXT   NOT NULL,
    signer    TEXT   NOT NULL,
    sealed    TEXT   NOT NULL,
    signature TEXT   NOT NULL,
    PRIMARY KEY (mesh_id, runner, kid),
    FOREIGN KEY (mesh_id, kid) REFERENCES vault_key (mesh_id, kid) ON DELETE CASCADE
);
CREATE INDEX vault_grant_by_runner ON vault_grant (runner);

CREATE TABLE consent (
    mesh_id   TEXT   NOT NULL,
    name      TEXT   NOT NULL,
    signer    TEXT   NOT NULL,
    serial    BIGINT NOT NULL,
    member_id TEXT   NOT NULL REFERENCES member (id) ON DELETE CASCADE,
    doc       TEXT   NOT NULL,
    signature TEXT   NOT NULL,
    stored_at BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, name, signer, serial),
    FOREIGN KEY (mesh_id, name) REFERENCES service (mesh_id, name) ON DELETE CASCADE
);

-- What runners wrote before they opened something. ledger and seq are the runner's; the same line twice is one line. A
-- removed service keeps its lines. A runner is believed about entries that are there, in meshes that (once) trusted it.
CREATE TABLE vault_opening (
    ledger     TEXT   NOT NULL,
    seq        BIGINT NOT NULL,
    mesh_id    TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    at_ms      BIGINT NOT NULL,
    runner     TEXT   NOT NULL,
    owner      TEXT   NOT NULL,
    key_name   TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    name       TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    caller     TEXT,
    reason     TEXT   NOT NULL,
    stored_at  BIGINT NOT NULL,
    PRIMARY KEY (ledger, seq)
);
CREATE INDEX vault_opening_by_entry ON vault_opening (mesh_id, owner, key_name, version);
CREATE INDEX vault_opening_by_time ON vault_opening (mesh_id, at_ms);
CREATE INDEX vault_opening_by_age ON vault_opening (stored_at);

-- What people did. mesh_id is NULL for the hand-over of a boot key, which is of no mesh.
CREATE TABLE vault_act (
    id       TEXT   NOT NULL PRIMARY KEY,
    mesh_id  TEXT   REFERENCES mesh (id) ON DELETE CASCADE,
    at_ms    BIGINT NOT NULL,
    act      TEXT   NOT NULL CHECK (act IN ('set', 'removed', 'trusted', 'revoked', 'boot_key', 'rotated', 'rewrapped',
        'key_dropped', 'at_rest')),
    who      TEXT   NOT NULL,
    owner    TEXT,
    key_name TEXT,
    version  BIGINT,
    runner   TEXT
);
CREATE INDEX vault_act_by_time ON vault_act (mesh_id, at_ms);
CREATE INDEX vault_act_by_age ON vault_act (at_ms);

-- Callers of services that run as their caller: a row for everybody who may have an instance, or data, at the runner.
-- held: which versions of entries the instance holds that the runner may have. NULL: it has to be ended before it is given
-- anything.
CREATE TABLE caller_instance (
    mesh_id      TEXT   NOT NULL,
    name         TEXT   NOT NULL,
    member_id    TEXT   NOT NULL REFERENCES member (id) ON DELETE CASCADE,
    created_at   BIGINT NOT NULL,
    last_call_at BIGINT NOT NULL,
    held         TEXT,
    PRIMARY KEY (mesh_id, name, member_id),
    FOREIGN KEY (mesh_id, name) REFERENCES service (mesh_id, name) ON DELETE CASCADE
);

-- Keys of the broker's own encryption at rest. Two of a mesh: a rotation is under way.
CREATE TABLE mesh_key (
    mesh_id    TEXT   NOT NULL REFERENCES mesh (id) ON DELETE CASCADE,
    key_id     TEXT   NOT NULL,
    root_id    TEXT   NOT NULL,
    wrapped    TEXT   NOT NULL,
    state      TEXT   NOT NULL CHECK (state IN ('active', 'decrypt_only')),
    created_at BIGINT NOT NULL,
    PRIMARY KEY (mesh_id, key_id)
);
CREATE UNIQUE INDEX one_active_mesh_key ON mesh_key (mesh_id) WHERE state = 'active';

-- Fingerprint of the entries and consents with which the runner was last given a service; NULL: none.
ALTER TABLE applied_policy ADD COLUMN material TEXT;

-- Requests into which the way out put a secret.
ALTER TABLE egress_decision ADD COLUMN injected BIGINT NOT NULL DEFAULT 0;
