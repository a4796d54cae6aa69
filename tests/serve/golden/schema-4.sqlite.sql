CREATE TABLE schema_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);

CREATE TABLE tenants (
    id VARCHAR(64) NOT NULL,
    created_at FLOAT NOT NULL,
    max_active INTEGER,
    max_running INTEGER,
    PRIMARY KEY (id)
);

CREATE TABLE workers (
    id VARCHAR(100) NOT NULL,
    kinds JSON NOT NULL,
    model JSON,
    device VARCHAR(32) NOT NULL,
    started_at FLOAT NOT NULL,
    seen_at FLOAT NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE api_keys (
    id VARCHAR(32) NOT NULL,
    tenant VARCHAR(64) NOT NULL,
    label VARCHAR(100) NOT NULL,
    hash VARCHAR(64) NOT NULL,
    created_at FLOAT NOT NULL,
    revoked_at FLOAT,
    PRIMARY KEY (id),
    FOREIGN KEY(tenant) REFERENCES tenants (id)
);

CREATE TABLE idempotency (
    tenant VARCHAR(64) NOT NULL,
    "key" VARCHAR(255) NOT NULL,
    fingerprint VARCHAR(64) NOT NULL,
    subject VARCHAR(32) NOT NULL,
    created_at FLOAT NOT NULL,
    PRIMARY KEY (tenant, "key"),
    FOREIGN KEY(tenant) REFERENCES tenants (id)
);

CREATE TABLE jobs (
    id VARCHAR(32) NOT NULL,
    tenant VARCHAR(64) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    fingerprint VARCHAR(64) NOT NULL,
    request JSON NOT NULL,
    created_at FLOAT NOT NULL,
    status VARCHAR(16) NOT NULL,
    revision INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    worker VARCHAR(100),
    lease_until FLOAT,
    deadline_at FLOAT,
    started_at FLOAT,
    completed_at FLOAT,
    stage VARCHAR(32),
    progress FLOAT NOT NULL,
    checkpoint VARCHAR(64),
    result JSON,
    error JSON,
    compute_s FLOAT NOT NULL,
    warnings JSON NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(tenant) REFERENCES tenants (id)
);

CREATE INDEX jobs_by_status ON jobs (status, kind, created_at);

CREATE INDEX jobs_by_tenant ON jobs (tenant, kind, created_at);

CREATE TABLE turns (
    tenant VARCHAR(64) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    served_at FLOAT NOT NULL,
    PRIMARY KEY (tenant, kind),
    FOREIGN KEY(tenant) REFERENCES tenants (id)
);

CREATE TABLE uploads (
    id VARCHAR(32) NOT NULL,
    tenant VARCHAR(64) NOT NULL,
    status VARCHAR(16) NOT NULL,
    bytes BIGINT NOT NULL,
    sha256 VARCHAR(64) NOT NULL,
    filename VARCHAR(255),
    clip JSON,
    error JSON,
    created_at FLOAT NOT NULL,
    used_at FLOAT,
    PRIMARY KEY (id),
    FOREIGN KEY(tenant) REFERENCES tenants (id)
);

CREATE INDEX uploads_by_tenant ON uploads (tenant, created_at);

CREATE TABLE webhook_secrets (
    id VARCHAR(24) NOT NULL,
    tenant VARCHAR(64) NOT NULL,
    secret VARCHAR(100) NOT NULL,
    created_at FLOAT NOT NULL,
    ends_at FLOAT,
    PRIMARY KEY (id),
    FOREIGN KEY(tenant) REFERENCES tenants (id)
);

CREATE TABLE webhooks (
    id VARCHAR(32) NOT NULL,
    tenant VARCHAR(64) NOT NULL,
    render VARCHAR(32) NOT NULL,
    url VARCHAR(2000) NOT NULL,
    body TEXT NOT NULL,
    status VARCHAR(16) NOT NULL,
    tries INTEGER NOT NULL,
    next_at FLOAT NOT NULL,
    error VARCHAR(300),
    created_at FLOAT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(tenant) REFERENCES tenants (id)
);

CREATE INDEX webhooks_due ON webhooks (status, next_at);

INSERT INTO schema_version (version) VALUES (4);
