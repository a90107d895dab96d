-- Who may use which tenant, and what a tenant has. The first two tables are those of the system that mcpmux replaces:
-- names and meaning stay, and there are no foreign keys, so that a grant may come before its tenant.

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

-- Tenants that an administrator made. Beside them every server has a tenant of its own id, which needs no row.
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

-- Every change of a grant is heard by every running mcpmux, whoever made it. PostgreSQL sends equal notifications of
-- one transaction once, at its commit.
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

-- Also in sessions with session_replication_role = replica, as bulk loads and replication use it: a revoked grant that
-- nobody hears of would stay in force.
ALTER TABLE user_tenant_access ENABLE ALWAYS TRIGGER grants_changed;
ALTER TABLE group_tenant_mapping ENABLE ALWAYS TRIGGER grants_changed;
ALTER TABLE tenants ENABLE ALWAYS TRIGGER grants_changed;
ALTER TABLE tenant_servers ENABLE ALWAYS TRIGGER grants_changed;
