//! Join tokens of agents and admin tokens of operators.

use serde::{Deserialize, Serialize};

/// Makes a join token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JoinTokenRequest {
    /// How long it may be used (default 1 hour, at most 30 days).
    pub ttl_ms: Option<u64>,
    /// How many agents may enrol with it (default 1; 0: unlimited).
    pub uses_max: Option<u32>,
    /// A word for people.
    pub note: String,
}

/// A new join token. This is the one time that it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinTokenCreated {
    /// Names the token without revealing it.
    pub id: String,
    /// What an agent needs: `skein1.<id>.<secret>.<sha256 of the CA>`.
    pub token: String,
    /// When it ends.
    pub expires_ms: i64,
    /// 0: unlimited.
    pub uses_max: u32,
    /// The command to type on the host; `SERVER` stands for this server's address where it is
    /// known only from outside.
    pub command: String,
}

/// All join tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct JoinTokenList {
    /// In order of creation.
    pub tokens: Vec<JoinTokenInfo>,
}

/// A join token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinTokenInfo {
    /// Its id.
    pub id: String,
    /// When it was made.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: i64,
    /// 0: unlimited.
    pub uses_max: u32,
    /// How many agents enrolled with it.
    pub used: u32,
    /// A word for people.
    pub note: String,
}

/// Makes an admin token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminTokenRequest {
    /// How long it may be used (absent: until deleted).
    pub ttl_ms: Option<u64>,
    /// A word for people.
    pub note: String,
}

/// A new admin token. This is the one time that it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdminTokenCreated {
    /// Names the token without revealing it.
    pub id: String,
    /// The bearer token.
    pub token: String,
    /// When it ends; absent: never.
    pub expires_ms: Option<i64>,
}

/// All admin tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AdminTokenList {
    /// In order of creation.
    pub tokens: Vec<AdminTokenInfo>,
}

/// An admin token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdminTokenInfo {
    /// Its id.
    pub id: String,
    /// When it was made.
    pub created_ms: i64,
    /// When it ends; absent: never.
    pub expires_ms: Option<i64>,
    /// A word for people.
    pub note: String,
}
