//! Enrolment and renewal: from a join token and a signed request to a certificate.
//!
//! Order: token, request, id, certificate, one batch in the store, answer. The use of the token
//! and the identity are stored together, so that a crash in between costs nothing. An agent that
//! asks again with the same key and token (its answer was lost) gets the same id and does not use
//! the token twice.

use std::sync::Arc;

use prost::Message;
use skein_observe::names;
use skein_wire::ids::{AgentId, hex_encode};
use skein_wire::signal::v1::{EnrolReply, EnrolRequest, HostFacts, RenewReply, RenewRequest};

use super::authority::{Authority, AuthorityError};
use super::command_keys::CommandKeys;
use super::csr::{CertifiedKey, CsrError};
use super::tokens::{JoinTokens, Reserved, TokenRefusal};
use crate::registry::{AGENTS_MAX, Facts, Identity, Registry};
use crate::store::{Batch, StoreError};
use crate::{clock, random};

/// Attempts when another enrolment came between.
const ATTEMPTS_MAX: u32 = 8;

/// Why an enrolment or renewal is refused. Shown to the operator of the agent.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the enrolment request cannot be read; is the agent newer than this server?")]
    Malformed,
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("agent id {0:?} is not one: 1 to 64 letters, digits and :._-")]
    AgentId(String),
    #[error(
        "agent id {0} is not registered here; remove the agent's identity folder and enrol again \
         for a new id"
    )]
    Unknown(AgentId),
    #[error(
        "agent id {0} is registered with another key; enrol with that key, or remove the agent's \
         identity folder and enrol again for a new id"
    )]
    OtherKey(AgentId),
    #[error(
        "agent {0} is revoked; remove the agent's identity folder and enrol it anew if it may \
         come back"
    )]
    Revoked(AgentId),
    #[error("this server serves {AGENTS_MAX} agents already; forget those that are gone")]
    Full,
    #[error("the key is certified for another agent; make a new key")]
    KeyTaken,
    #[error("the server could not store the enrolment; try again ({0})")]
    Store(#[from] StoreError),
    #[error("the server could not make the certificate; see its log")]
    Authority(#[from] AuthorityError),
    #[error("the server has no randomness")]
    Random(#[from] std::io::Error),
}

impl Refusal {
    fn label(&self) -> &'static str {
        match self {
            Self::Malformed | Self::AgentId(_) => "malformed",
            Self::Token(_) => "token",
            Self::Csr(_) | Self::KeyTaken => "csr",
            Self::Unknown(_) | Self::OtherKey(_) => "identity",
            Self::Revoked(_) => "revoked",
            Self::Full | Self::Store(_) | Self::Authority(_) | Self::Random(_) => "server",
        }
    }
}

/// Enrols agents and renews their certificates.
#[derive(Debug)]
pub struct Enroller {
    authority: Arc<Authority>,
    command_keys: Arc<CommandKeys>,
    tokens: Arc<JoinTokens>,
    registry: Arc<Registry>,
}

/// What an enrolment decided before the store was asked.
struct Plan {
    id: AgentId,
    before: Option<Identity>,
    reserved: Option<Reserved>,
}

impl Enroller {
    /// From its parts.
    pub fn new(
        authority: Arc<Authority>,
        command_keys: Arc<CommandKeys>,
        tokens: Arc<JoinTokens>,
        registry: Arc<Registry>,
    ) -> Self {
        Self { authority, command_keys, tokens, registry }
    }

    /// Answers one request of a client without a certificate.
    pub async fn enrol(&self, request: &[u8], remote_addr: &str) -> EnrolReply {
        let outcome = match EnrolRequest::decode(request) {
            Ok(request) => self.try_enrol(request).await,
            Err(_) => Err(Refusal::Malformed),
        };
        let result = outcome.as_ref().map_or_else(Refusal::label, |_| "ok");
        metrics::counter!(names::CONTROL_ENROLMENTS, "result" => result).increment(1);
        match outcome {
            Ok(reply) => {
                tracing::info!(agent = reply.agent_id, remote_addr, "enrolled");
                reply
            }
            Err(refusal) => {
                tracing::warn!(remote_addr, %refusal, "enrolment refused");
                EnrolReply { error: refusal.to_string(), ..Default::default() }
            }
        }
    }

    async fn try_enrol(&self, request: EnrolRequest) -> Result<EnrolReply, Refusal> {
        self.tokens.verify(&request.token_id, &request.token_secret)?;
        let key = CertifiedKey::from_csr(&request.csr_der)?;
        let facts = request.facts.clone().unwrap_or_default();
        let mut attempts = 0;
        loop {
            let plan = self.plan(&request, &key, &facts).await?;
            match self.carry_out(plan, &request, &key, &facts).await {
                // Another enrolment took the use or the key at the same moment.
                Err(Refusal::Store(StoreError::Conflict { .. })) if attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                }
                other => return other,
            }
        }
    }

    async fn plan(
        &self,
        request: &EnrolRequest,
        key: &CertifiedKey,
        facts: &HostFacts,
    ) -> Result<Plan, Refusal> {
        let key_sha256 = hex_encode(&key.sha256);
        let owner = self.registry.owner_of_key(&key_sha256).await?;
        let wish = match request.agent_id.as_str() {
            "" => owner,
            text => {
                let wish = AgentId::parse(text)
                    .map_err(|_| Refusal::AgentId(text.chars().take(64).collect()))?;
                if owner.as_ref().is_some_and(|owner| *owner != wish) {
                    return Err(Refusal::KeyTaken);
                }
                Some(wish)
            }
        };
        let Some(id) = wish else {
            if self.registry.len() >= AGENTS_MAX {
                return Err(Refusal::Full);
            }
            let reserved = self.tokens.reserve(&request.token_id, &request.token_secret)?;
            let id = agent_id_for(&facts.mac, clock::now_ms())?;
            return Ok(Plan { id, before: None, reserved: Some(reserved) });
        };
        let before = self.registry.identity(&id).ok_or_else(|| Refusal::Unknown(id.clone()))?;
        if before.revoked_ms.is_some() {
            return Err(Refusal::Revoked(id));
        }
        if before.key_sha256 != key_sha256 {
            return Err(Refusal::OtherKey(id));
        }
        let reserved = match before.join_token_id == request.token_id {
            true => None,
            false => Some(self.tokens.reserve(&request.token_id, &request.token_secret)?),
        };
        Ok(Plan { id, before: Some(before), reserved })
    }

    async fn carry_out(
        &self,
        plan: Plan,
        request: &EnrolRequest,
        key: &CertifiedKey,
        facts: &HostFacts,
    ) -> Result<EnrolReply, Refusal> {
        let Plan { id, before, reserved } = plan;
        let issued = match self.authority.issue_agent(key, &id) {
            Ok(issued) => issued,
            Err(error) => {
                reserved.into_iter().for_each(|reserved| self.tokens.give_back(reserved));
                tracing::error!(%error, agent = %id, "no certificate");
                return Err(error.into());
            }
        };
        let identity = Identity {
            key_sha256: hex_encode(&key.sha256),
            serial: issued.serial,
            not_after_ms: issued.not_after_ms,
            enrolled_ms: before.as_ref().map_or_else(clock::now_ms, |before| before.enrolled_ms),
            join_token_id: request.token_id.clone(),
            ..Identity::default()
        };
        let more = match &reserved {
            Some(reserved) => reserved.add_to(Batch::new(), id.as_str()),
            None => Batch::new(),
        };
        let facts = Facts::from_report(facts.clone());
        let stored =
            self.registry.keep_identity(&id, before.as_ref(), identity, Some(facts), more).await;
        if let Err(error) = stored {
            // After a conflict on the use itself the number is taken for good.
            let ours =
                !matches!(&error, StoreError::Conflict { key, .. } if key.contains("join-use"));
            if ours {
                reserved.into_iter().for_each(|reserved| self.tokens.give_back(reserved));
            }
            return Err(error.into());
        }
        Ok(EnrolReply {
            error: String::new(),
            agent_id: id.to_string(),
            certificate_chain_der: vec![issued.der.into(), self.ca_der()],
            trusted_ca_der: vec![self.ca_der()],
            command_keys: self.command_keys.public().to_vec(),
        })
    }

    fn ca_der(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(self.authority.der())
    }

    /// Answers an agent that is authenticated by the certificate it has.
    pub async fn renew(&self, id: &AgentId, request: &RenewRequest) -> RenewReply {
        let outcome = self.try_renew(id, request).await;
        let result = outcome.as_ref().map_or_else(Refusal::label, |_| "renewed");
        metrics::counter!(names::CONTROL_ENROLMENTS, "result" => result).increment(1);
        outcome.unwrap_or_else(|refusal| {
            tracing::warn!(agent = %id, %refusal, "renewal refused");
            RenewReply { error: refusal.to_string(), ..Default::default() }
        })
    }

    async fn try_renew(&self, id: &AgentId, request: &RenewRequest) -> Result<RenewReply, Refusal> {
        let key = CertifiedKey::from_csr(&request.csr_der)?;
        let mut attempts = 0;
        loop {
            match self.renew_once(id, &key).await {
                // Its identity changed meanwhile; it may even be revoked.
                Err(Refusal::Store(StoreError::Conflict { .. })) if attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                }
                other => return other,
            }
        }
    }

    async fn renew_once(&self, id: &AgentId, key: &CertifiedKey) -> Result<RenewReply, Refusal> {
        let before = self.registry.identity(id).ok_or_else(|| Refusal::Unknown(id.clone()))?;
        if before.revoked_ms.is_some() {
            return Err(Refusal::Revoked(id.clone()));
        }
        let key_sha256 = hex_encode(&key.sha256);
        let owner = self.registry.owner_of_key(&key_sha256).await?;
        if owner.is_some_and(|owner| owner != *id) {
            return Err(Refusal::KeyTaken);
        }
        let issued = self.authority.issue_agent(key, id)?;
        let identity = Identity {
            key_sha256,
            serial: issued.serial,
            not_after_ms: issued.not_after_ms,
            ..before.clone()
        };
        self.registry.keep_identity(id, Some(&before), identity, None, Batch::new()).await?;
        Ok(RenewReply {
            error: String::new(),
            certificate_chain_der: vec![issued.der.into(), self.ca_der()],
            trusted_ca_der: vec![self.ca_der()],
            command_keys: self.command_keys.public().to_vec(),
        })
    }
}

/// A new agent id in GSE's shape: `0200000000`, 12 hex digits of the MAC address, 13 digits of
/// milliseconds since 1970, one character that tells clones of the same moment apart.
pub fn agent_id_for(mac: &str, now_ms: i64) -> std::io::Result<AgentId> {
    let [last, own @ ..] = random::bytes::<6>()?;
    let mac: String = mac.chars().filter(char::is_ascii_hexdigit).collect();
    let mac = match mac.len() == 12 && mac.chars().any(|digit| digit != '0') {
        true => mac.to_lowercase(),
        // Locally administered: it cannot be mistaken for a real interface's.
        false => format!("02{}", hex_encode(&own)),
    };
    let last = b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::from(last) % 36] as char;
    let text = format!("0200000000{mac}{:013}{last}", now_ms.clamp(0, 9_999_999_999_999));
    AgentId::parse(&text).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_ids_have_the_shape_of_gse() {
        let id = agent_id_for("52:54:00:25:15:7E", 1_753_363_692_251).unwrap().to_string();
        assert_eq!(id.len(), 36);
        assert!(id.starts_with("020000000052540025157e1753363692251"), "{id}");
        for mac in ["", "00:00:00:00:00:00", "lo", "525400"] {
            let id = agent_id_for(mac, 5).unwrap().to_string();
            assert_eq!(id.len(), 36);
            assert!(id.starts_with("020000000002"), "{id}");
        }
    }
}
