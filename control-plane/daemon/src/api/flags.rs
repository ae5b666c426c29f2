//! The API server's own flags, under kube-apiserver's names where the meaning is the same.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{ArgAction, Args, ValueEnum};

#[derive(Debug, Args)]
#[command(next_help_heading = "API server")]
pub struct ApiFlags {
    /// Requests that only read and are worked on at one time
    #[arg(long, value_name = "N", default_value_t = 400)]
    pub max_requests_inflight: u32,

    /// Requests that write and are worked on at one time
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub max_mutating_requests_inflight: u32,

    /// Whether these two are shared out by FlowSchemas and PriorityLevelConfigurations, with fair queues
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub enable_priority_and_fairness: bool,

    /// How long a request may take that is no watch, log or connection
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub request_timeout: Duration,

    /// How long the API server goes on to serve after SIGTERM, while /readyz already says no
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub shutdown_delay_duration: Duration,

    /// Who may do what: everybody everything, or what Roles and ClusterRoles say
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::AlwaysAllow, ignore_case = true)]
    pub authorization_mode: Mode,

    /// Whether clients are served that do not say who they are
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub anonymous_auth: bool,

    /// Bearer tokens and their users, one a line: token,user,uid,"group1,group2"
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,

    /// The P-256 key (PEM, PKCS #8) that signs tokens of ServiceAccounts; default: service-account.key in --data-dir, made
    /// if it is not there
    #[arg(long, value_name = "FILE")]
    pub service_account_signing_key_file: Option<PathBuf>,

    /// Who issues tokens of ServiceAccounts [default: https://kubernetes.default.svc.cluster.local]
    #[arg(long, value_name = "URL")]
    pub service_account_issuer: Option<String>,

    /// Whom tokens of ServiceAccounts are for when nobody says; default: the issuer
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub api_audiences: Vec<String>,

    /// Where the API server listens with TLS (can be repeated). Only with --authorization-mode=RBAC
    #[arg(long, value_name = "ADDR:PORT")]
    pub tls_listen: Vec<SocketAddr>,

    /// The server's certificate, PEM; default: one of an authority of its own in --data-dir/pki, with admin.conf for
    /// kubectl beside it
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,

    /// The key of --tls-cert-file, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,

    /// Whose certificates prove who a client is (user: common name, groups: organizations); default: the authority in
    /// --data-dir/pki
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,

    /// What is recorded of requests: an audit.k8s.io/v1 Policy
    #[arg(long, value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,

    /// Where requests are recorded, a line of JSON each; - is standard output
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,

    /// Megabytes after which the audit log is renamed and begun anew; 0: never
    #[arg(long, value_name = "MB", default_value_t = 0)]
    pub audit_log_maxsize: u64,

    /// How many renamed audit logs are kept; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub audit_log_maxbackup: usize,

    /// Days that renamed audit logs are kept; 0: for ever
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    pub audit_log_maxage: u64,

    /// Where traces of requests go, and of how many: an apiserver.config.k8s.io/v1 TracingConfiguration
    #[arg(long, value_name = "FILE")]
    pub tracing_config_file: Option<PathBuf>,
}

/// `--authorization-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    #[value(name = "AlwaysAllow")]
    AlwaysAllow,
    #[value(name = "RBAC")]
    Rbac,
}

fn duration(text: &str) -> Result<Duration> {
    control_plane_apiserver::parse_duration(text)
        .with_context(|| format!("{text:?} is no time; give one as in 30s or 1m30s"))
}
