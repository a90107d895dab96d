-- The schema of mcpmux: what mcpmux/store/migrations/ add up to, to read and to review. A test compares the two.
-- To make a database use `mcpmux migrate`, which also records what it has applied.

CREATE TABLE schema_migrations (
    version integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT schema_migrations_pkey PRIMARY KEY (version)
);

-- Grants: who may use which tenant, and what a tenant has. Every change is notified on the channel grants_changed.

CREATE TABLE user_tenant_access (
    user_email text NOT NULL,
    tenant_id text NOT NULL,
    access_level text NOT NULL DEFAULT 'write',
    CONSTRAINT user_tenant_access_pkey PRIMARY KEY (user_email, tenant_id),
    CONSTRAINT user_tenant_access_level CHECK (access_level IN ('read', 'write', 'admin'))
);

CREATE TABLE group_tenant_mapping (
    group_name text NOT NULL,
    tenant_id text NOT NULL,
    access_level text NOT NULL DEFAULT 'write',
    CONSTRAINT group_tenant_mapping_pkey PRIMARY KEY (group_name, tenant_id),
    CONSTRAINT group_tenant_mapping_level CHECK (access_level IN ('read', 'write', 'admin'))
);

CREATE TABLE tenants (
    id text NOT NULL,
    title text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tenants_pkey PRIMARY KEY (id)
);

CREATE TABLE tenant_servers (
    tenant_id text NOT NULL,
    server_id text NOT NULL,
    tools text[] NOT NULL DEFAULT '{*}',
    CONSTRAINT tenant_servers_pkey PRIMARY KEY (tenant_id, server_id)
);

CREATE FUNCTION notify_grants_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.pg_notify('grants_changed', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER grants_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON user_tenant_access
    FOR EACH STATEMENT EXECUTE FUNCTION notify_grants_changed();
CREATE TRIGGER grants_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON group_tenant_mapping
    FOR EACH STATEMENT EXECUTE FUNCTION notify_grants_changed();
CREATE TRIGGER grants_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenants
    FOR EACH STATEMENT EXECUTE FUNCTION notify_grants_changed();
CREATE TRIGGER grants_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenant_servers
    FOR EACH STATEMENT EXECUTE FUNCTION notify_grants_changed();

ALTER TABLE user_tenant_access ENABLE ALWAYS TRIGGER grants_changed;
ALTER TABLE group_tenant_mapping ENABLE ALWAYS TRIGGER grants_changed;
ALTER TABLE tenants ENABLE ALWAYS TRIGGER grants_changed;
ALTER TABLE tenant_servers ENABLE ALWAYS TRIGGER grants_changed;

-- What is remembered of upstream servers from one run to the next.

CREATE TABLE kept_offers (
    server_id text NOT NULL,
    digest bytea NOT NULL,
    offer bytea NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT kept_offers_pkey PRIMARY KEY (server_id, digest)
);

CREATE TABLE link_eras (
    server_id text NOT NULL,
    digest bytea NOT NULL,
    era text NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT link_eras_pkey PRIMARY KEY (server_id, digest)
);
