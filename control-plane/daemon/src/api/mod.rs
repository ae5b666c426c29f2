//! How the API server of this process serves: limits, identities, audit, TLS, worked out of the flags.

mod files;
mod flags;
mod pki;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control_plane_apiserver::access::{Authenticators, Authorization, ServiceAccounts, User};
use control_plane_apiserver::audit::{Audit, FileOptions, Log, Policy};
use control_plane_apiserver::{Limits, Settings, Tracing, TracingConfiguration};

pub use flags::{ApiFlags, Mode};
pub use pki::Pki;

use crate::flags::Flags;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Tokens by which the parts of this process are known to its own API server. They are made at each start and never
/// leave the process.
#[derive(Clone, Debug)]
pub struct OwnTokens {
    pub controllers: String,
    pub scheduler: String,
}

impl OwnTokens {
    pub fn new() -> Self {
        let token = || {
            format!(
                "{:032x}{:032x}",
                rand::random::<u128>(),
                rand::random::<u128>()
            )
        };
        Self {
            controllers: token(),
            scheduler: token(),
        }
    }
}

/// What the API server is run with.
pub fn settings(flags: &Flags, own: &OwnTokens) -> Result<Settings> {
    let api = &flags.api;
    ensure!(
        api.max_requests_inflight > 0 && api.max_mutating_requests_inflight > 0,
        "--max-requests-inflight and --max-mutating-requests-inflight: give at least 1, else nothing is served"
    );
    ensure!(
        api.request_timeout >= Duration::from_secs(1),
        "--request-timeout: give at least 1s"
    );
    Ok(Settings {
        limits: Limits {
            reading: api.max_requests_inflight,
            writing: api.max_mutating_requests_inflight,
            fairness: api.enable_priority_and_fairness,
            request_timeout: api.request_timeout,
            ..Limits::default()
        },
        authenticators: authenticators(flags, own)?,
        authorization: match api.authorization_mode {
            Mode::AlwaysAllow => Authorization::AlwaysAllow,
            Mode::Rbac => Authorization::Rbac,
        },
        audit: audit(api)?,
        tracing: tracing(api)?,
        ..Settings::default()
    })
}

fn authenticators(flags: &Flags, own: &OwnTokens) -> Result<Authenticators> {
    let api = &flags.api;
    let mut tokens = match &api.token_auth_file {
        Some(path) => files::tokens(path)?,
        None => Default::default(),
    };
    for (token, name) in [
        (&own.controllers, "system:kube-controller-manager"),
        (&own.scheduler, "system:kube-scheduler"),
    ] {
        let user = User::authenticated(name, "", Vec::new());
        tokens.insert(token.clone(), Arc::new(user));
    }
    let key = api.service_account_signing_key_file.clone();
    let key = key.unwrap_or_else(|| flags.data_dir.join("service-account.key"));
    let keys = files::service_account_key(&key, api.service_account_signing_key_file.is_none())?;
    let issuer = api.service_account_issuer.as_deref().unwrap_or(ISSUER);
    let accounts = ServiceAccounts::new(issuer, api.api_audiences.clone(), &keys)
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("cannot sign tokens with {}", key.display()))?;
    Ok(Authenticators {
        tokens,
        service_accounts: Some(Arc::new(accounts)),
        no_anonymous: !api.anonymous_auth,
    })
}

fn tracing(api: &ApiFlags) -> Result<Option<Tracing>> {
    let Some(path) = &api.tracing_config_file else {
        return Ok(None);
    };
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--tracing-config-file: cannot read {shown}"))?;
    let opened = TracingConfiguration::parse(&text).and_then(|read| Tracing::open(&read));
    opened
        .map(Some)
        .with_context(|| format!("--tracing-config-file: no traces by {shown}"))
}

fn audit(api: &ApiFlags) -> Result<Option<Arc<Audit>>> {
    let (path, policy) = match (&api.audit_log_path, &api.audit_policy_file) {
        (None, None) => return Ok(None),
        (Some(path), Some(policy)) => (path, policy),
        (Some(_), None) => anyhow::bail!(
            "--audit-log-path: give --audit-policy-file too, which says what is recorded"
        ),
        (None, Some(_)) => anyhow::bail!(
            "--audit-policy-file: give --audit-log-path too, the file to write, or - for standard output"
        ),
    };
    let text = std::fs::read_to_string(policy)
        .with_context(|| format!("--audit-policy-file: cannot read {}", policy.display()))?;
    let policy = Policy::parse(&text)
        .with_context(|| format!("--audit-policy-file: {} is no policy", policy.display()))?;
    let options = FileOptions {
        path: path.clone(),
        max_size: api.audit_log_maxsize.saturating_mul(1 << 20),
        max_backups: api.audit_log_maxbackup,
        max_age: Duration::from_secs(api.audit_log_maxage.saturating_mul(24 * 3600)),
    };
    let log = Log::open(options)
        .with_context(|| format!("--audit-log-path: cannot write {}", path.display()))?;
    Ok(Some(Arc::new(Audit::new(policy, log))))
}
