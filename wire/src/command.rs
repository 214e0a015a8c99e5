//! Signed commands: one signature per dispatch, one proof per agent.
//!
//! A dispatch goes to many agents. Each agent's leaf binds what it must do to who it is and until
//! when; the leaves' merkle root is signed once (Ed25519):
//!
//! ```text
//! leaf      = H(0x00, "skein-command-1", length of agent id (u8), agent id,
//!               SHA-256 of body, not_after_ms (i64), nonce (16))
//! signature = Ed25519("skein-dispatch-1", leaf count (u32), root)
//! ```
//! So a captured command serves no other host and no later time, and 20,000 targets cost one
//! signature, be the order the same for all ([`Signer::dispatch`]) or a body of its own for each
//! ([`Signer::dispatch_each`]). An agent verifies against the keys it pinned when it enrolled.
//! Repeats within the deadline are the agent's to refuse: it remembers command ids until
//! `not_after_ms`.

use bytes::Bytes;
use prost::Message;
use ring::rand::SecureRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::ids::AgentId;
use crate::limits::{COMMAND_PATH_MAX, DISPATCH_AGENTS_MAX, SIGNAL_MESSAGE_BYTES_MAX};
use crate::merkle::{self, Hash, Tree};
use crate::signal::v1::{Command, CommandBody, CommandKey, ServerMessage, server_message::Kind};

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 16;

/// Orders of their own that share a signature where there are many. Each proof has 32 bytes for each
/// doubling of their number, 14 times 32 for 10,000; a signature costs the signer 20 µs, and so a
/// third of a microsecond for each of 64.
pub const ORDERS_PER_SIGNATURE: usize = 64;

const LEAF_DOMAIN: &[u8] = b"skein-command-1";
const DISPATCH_DOMAIN: &[u8] = b"skein-dispatch-1";

/// Why a dispatch cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The key is not an Ed25519 key in PKCS#8.
    #[error("command key is not an Ed25519 key in PKCS#8: {0}")]
    Key(String),
    /// None, or more than [`DISPATCH_AGENTS_MAX`].
    #[error("a dispatch goes to 1 to {DISPATCH_AGENTS_MAX} agents, not to {0}")]
    Agents(usize),
    /// Body and proof do not fit a signal message.
    #[error("command has {0} bytes; a signal message holds {SIGNAL_MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// The source of randomness failed.
    #[error("no random bytes for nonces")]
    Random,
}

/// Why an agent does not obey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The signature does not fit: altered, unsigned, or meant for another agent.
    #[error("signature does not cover this command for this agent")]
    Signature,
    /// Signed by a key that this agent does not know.
    #[error("command key is unknown; enrol again or rotate keys")]
    UnknownKey,
    /// Its time is over.
    #[error("command has expired")]
    Expired,
    /// A field has an impossible size.
    #[error("command is malformed")]
    Malformed,
    /// The same command was taken before. Set by the agent, which remembers.
    #[error("command was already taken")]
    Replayed,
}

impl Refusal {
    /// The name used in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::UnknownKey => "unknown_key",
            Self::Expired => "expired",
            Self::Malformed => "malformed",
            Self::Replayed => "replayed",
        }
    }
}

/// The leaf of `agent`.
pub fn leaf_hash(
    agent: &AgentId,
    body_digest: &Hash,
    not_after_ms: i64,
    nonce: &[u8; NONCE_BYTES],
) -> Hash {
    let id = agent.as_str().as_bytes();
    let length = [id.len() as u8];
    merkle::leaf(&[LEAF_DOMAIN, &length, id, body_digest, &not_after_ms.to_be_bytes(), nonce])
}

fn statement(leaf_count: u32, root: &Hash) -> Vec<u8> {
    [DISPATCH_DOMAIN, &leaf_count.to_be_bytes(), root].concat()
}

/// Signs dispatches; lives in the control process only.
pub struct Signer {
    key_id: u32,
    key: Ed25519KeyPair,
}

/// A signed dispatch: agent `i` gets `common` followed by `extras[i]`.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// What all share of a [`ServerMessage`], encoded; the body too when it is the same for all.
    pub common: Bytes,
    /// What each has of its own, in the order of the agents.
    pub extras: Vec<Bytes>,
}

impl Signer {
    /// From an Ed25519 key in PKCS#8 (DER).
    pub fn from_pkcs8(key_id: u32, pkcs8: &[u8]) -> Result<Self, SignError> {
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
            .map_err(|error| SignError::Key(error.to_string()))?;
        Ok(Self { key_id, key })
    }

    /// What agents pin.
    pub fn public(&self) -> CommandKey {
        let public_key = Bytes::copy_from_slice(self.key.public_key().as_ref());
        CommandKey { key_id: self.key_id, public_key }
    }

    /// Signs `body` for `agents` until `not_after_ms` (server time, ms since 1970).
    pub fn dispatch(
        &self,
        body: &CommandBody,
        not_after_ms: i64,
        agents: &[AgentId],
        random: &dyn SecureRandom,
    ) -> Result<Dispatch, SignError> {
        let body = Bytes::from(body.encode_to_vec());
        let digest = merkle::sha256(&body);
        let agents: Vec<_> = agents.iter().map(|agent| (agent, digest)).collect();
        self.sign(body, not_after_ms, &agents, |_| Bytes::new(), random)
    }

    /// Signs a body of its own for each agent until `not_after_ms`, all with one signature.
    pub fn dispatch_each(
        &self,
        orders: &[(AgentId, CommandBody)],
        not_after_ms: i64,
        random: &dyn SecureRandom,
    ) -> Result<Dispatch, SignError> {
        let bodies: Vec<Bytes> =
            orders.iter().map(|(_, body)| body.encode_to_vec().into()).collect();
        let digests = bodies.iter().map(|body| merkle::sha256(body));
        let agents: Vec<_> = orders.iter().map(|(agent, _)| agent).zip(digests).collect();
        self.sign(Bytes::new(), not_after_ms, &agents, |index| bodies[index].clone(), random)
    }

    /// Signs for `agents` and the digests of their bodies. `common` is the body that all share,
    /// `own` that of one.
    fn sign(
        &self,
        common: Bytes,
        not_after_ms: i64,
        agents: &[(&AgentId, Hash)],
        own: impl Fn(usize) -> Bytes,
        random: &dyn SecureRandom,
    ) -> Result<Dispatch, SignError> {
        if agents.is_empty() || agents.len() > DISPATCH_AGENTS_MAX {
            return Err(SignError::Agents(agents.len()));
        }
        let mut nonces = vec![0; agents.len() * NONCE_BYTES];
        random.fill(&mut nonces).map_err(|_| SignError::Random)?;
        let (nonces, _) = nonces.as_chunks::<NONCE_BYTES>();
        let leaves = agents
            .iter()
            .zip(nonces)
            .map(|((agent, digest), nonce)| leaf_hash(agent, digest, not_after_ms, nonce))
            .collect();
        let tree = Tree::new(leaves).ok_or(SignError::Agents(0))?;
        let leaf_count = agents.len() as u32;
        let signature = self.key.sign(&statement(leaf_count, &tree.root()));
        let common = encode(Command {
            body: common,
            not_after_ms,
            key_id: self.key_id,
            signature: Bytes::copy_from_slice(signature.as_ref()),
            leaf_count,
            ..Default::default()
        });
        let extra = |(index, nonce): (usize, &[u8; NONCE_BYTES])| {
            let path = tree.path(index).unwrap_or_default();
            encode(Command {
                body: own(index),
                leaf_index: index as u32,
                nonce: Bytes::copy_from_slice(nonce),
                path: path.iter().map(|hash| Bytes::copy_from_slice(hash)).collect(),
                ..Default::default()
            })
        };
        let extras: Vec<Bytes> = nonces.iter().enumerate().map(extra).collect();
        let longest = common.len() + extras.iter().map(Bytes::len).max().unwrap_or(0);
        if longest > SIGNAL_MESSAGE_BYTES_MAX {
            return Err(SignError::TooLong(longest));
        }
        Ok(Dispatch { common, extras })
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer(key {})", self.key_id)
    }
}

fn encode(command: Command) -> Bytes {
    ServerMessage { kind: Some(Kind::Command(command)) }.encode_to_vec().into()
}

/// Verifies commands on the agent.
#[derive(Debug, Clone, Default)]
pub struct Verifier {
    keys: Vec<CommandKey>,
}

impl Verifier {
    /// Trusts `keys` and no other.
    pub fn new(keys: Vec<CommandKey>) -> Self {
        Self { keys }
    }

    /// What `agent` shall do, if the command is for it, signed and in time.
    pub fn verify(
        &self,
        agent: &AgentId,
        command: &Command,
        server_now_ms: i64,
    ) -> Result<CommandBody, Refusal> {
        let nonce = command.nonce.as_ref().try_into().map_err(|_| Refusal::Malformed)?;
        if command.path.len() > COMMAND_PATH_MAX {
            return Err(Refusal::Malformed);
        }
        let path = command.path.iter().map(|hash| hash.as_ref().try_into());
        let path: Vec<Hash> = path.collect::<Result<_, _>>().map_err(|_| Refusal::Malformed)?;
        let digest = merkle::sha256(&command.body);
        let leaf = leaf_hash(agent, &digest, command.not_after_ms, nonce);
        let (index, count) = (command.leaf_index as usize, command.leaf_count as usize);
        let root = merkle::root_of(leaf, index, count, &path).ok_or(Refusal::Malformed)?;
        let key =
            self.keys.iter().find(|key| key.key_id == command.key_id).ok_or(Refusal::UnknownKey)?;
        UnparsedPublicKey::new(&ED25519, &key.public_key)
            .verify(&statement(command.leaf_count, &root), &command.signature)
            .map_err(|_| Refusal::Signature)?;
        if server_now_ms > command.not_after_ms {
            return Err(Refusal::Expired);
        }
        CommandBody::decode(command.body.clone()).map_err(|_| Refusal::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::v1::{CancelTask, command_body};
    use proptest::prelude::*;
    use ring::rand::SystemRandom;

    fn agent(name: &str) -> AgentId {
        AgentId::parse(name).unwrap()
    }

    fn body() -> CommandBody {
        let cancel = CancelTask { task_id: vec![9; 16].into() };
        CommandBody {
            command_id: vec![1; 16].into(),
            kind: Some(command_body::Kind::CancelTask(cancel)),
        }
    }

    fn signer(key_id: u32) -> Signer {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Signer::from_pkcs8(key_id, pkcs8.as_ref()).unwrap()
    }

    fn command_of(dispatch: &Dispatch, index: usize) -> Command {
        let bytes = [&dispatch.common[..], &dispatch.extras[index]].concat();
        match ServerMessage::decode(&bytes[..]).unwrap().kind {
            Some(Kind::Command(command)) => command,
            other => panic!("{other:?}"),
        }
    }

    const NOT_AFTER: i64 = 1_000;

    fn dispatch(signer: &Signer, names: &[&str]) -> Dispatch {
        let agents: Vec<_> = names.iter().map(|name| agent(name)).collect();
        signer.dispatch(&body(), NOT_AFTER, &agents, &SystemRandom::new()).unwrap()
    }

    #[test]
    fn every_target_obeys_and_nobody_else() {
        let signer = signer(1);
        let verifier = Verifier::new(vec![signer.public()]);
        let dispatch = dispatch(&signer, &["a", "b", "c", "d", "e"]);
        for (index, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
            let command = command_of(&dispatch, index);
            assert_eq!(verifier.verify(&agent(name), &command, NOT_AFTER), Ok(body()));
            let other = verifier.verify(&agent("f"), &command, NOT_AFTER);
            assert_eq!(other, Err(Refusal::Signature));
        }
    }

    #[test]
    fn altered_expired_and_unsigned_commands_are_refused() {
        let signer = signer(1);
        let verifier = Verifier::new(vec![signer.public()]);
        let good = command_of(&dispatch(&signer, &["a", "b"]), 0);
        let refusal = |change: &dyn Fn(&mut Command)| {
            let mut command = good.clone();
            change(&mut command);
            verifier.verify(&agent("a"), &command, NOT_AFTER).unwrap_err()
        };
        assert_eq!(refusal(&|c| c.body = vec![0; 10].into()), Refusal::Signature);
        assert_eq!(refusal(&|c| c.not_after_ms += 1), Refusal::Signature);
        assert_eq!(refusal(&|c| c.nonce = vec![0; 16].into()), Refusal::Signature);
        assert_eq!(refusal(&|c| c.signature = Bytes::new()), Refusal::Signature);
        assert_eq!(refusal(&|c| c.leaf_index = 1), Refusal::Signature);
        assert_eq!(refusal(&|c| c.key_id = 2), Refusal::UnknownKey);
        assert_eq!(refusal(&|c| c.nonce = vec![0; 15].into()), Refusal::Malformed);
        assert_eq!(refusal(&|c| c.path = vec![vec![0; 32].into(); 99]), Refusal::Malformed);
        let late = verifier.verify(&agent("a"), &good, NOT_AFTER + 1);
        assert_eq!(late, Err(Refusal::Expired));
    }

    #[test]
    fn one_signature_covers_a_body_of_its_own_for_each() {
        let signer = signer(1);
        let verifier = Verifier::new(vec![signer.public()]);
        let own = |id: u8| CommandBody { command_id: vec![id; 16].into(), ..body() };
        let orders = ["a", "b", "c"].map(|name| (agent(name), own(name.as_bytes()[0])));
        let random = SystemRandom::new();
        let signed = signer.dispatch_each(&orders, NOT_AFTER, &random).unwrap();
        let of = |index| command_of(&signed, index);
        for (index, (agent, body)) in orders.iter().enumerate() {
            assert_eq!(verifier.verify(agent, &of(index), NOT_AFTER).as_ref(), Ok(body));
        }
        // Another's body is not for us, neither under its own proof nor under ours.
        let (ours, theirs) = (&orders[0].0, of(1));
        assert_eq!(verifier.verify(ours, &theirs, NOT_AFTER), Err(Refusal::Signature));
        let swapped = Command { body: theirs.body, ..of(0) };
        assert_eq!(verifier.verify(ours, &swapped, NOT_AFTER), Err(Refusal::Signature));
    }

    #[test]
    fn a_strangers_key_with_our_id_is_refused() {
        let (ours, theirs) = (signer(1), signer(1));
        let verifier = Verifier::new(vec![ours.public()]);
        let command = command_of(&dispatch(&theirs, &["a"]), 0);
        let verdict = verifier.verify(&agent("a"), &command, NOT_AFTER);
        assert_eq!(verdict, Err(Refusal::Signature));
    }

    #[test]
    fn dispatches_without_or_with_too_large_a_body_are_not_signed() {
        let signer = signer(1);
        let random = SystemRandom::new();
        let none = signer.dispatch(&body(), 0, &[], &random);
        assert_eq!(none.unwrap_err(), SignError::Agents(0));
        let large =
            CommandBody { command_id: vec![0; SIGNAL_MESSAGE_BYTES_MAX].into(), kind: None };
        let refused = signer.dispatch(&large, 0, &[agent("a")], &random);
        assert!(matches!(refused, Err(SignError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn any_command_is_verified_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let verifier = Verifier::new(vec![signer(1).public()]);
            if let Ok(command) = Command::decode(&bytes[..]) {
                prop_assert!(verifier.verify(&agent("a"), &command, 0).is_err());
            }
        }
    }
}
