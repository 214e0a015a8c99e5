//! What collectors are told of the agent (agent.md 1.5): the union of the keys that any known
//! client reads, all numbers within 32 bits.

use std::cell::RefCell;
use std::rc::Rc;

use super::InputsConfig;
use super::gse::encode_info;
use crate::clock;

/// Whose agent this is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AgentInfo {
    /// The agent's id; known once it is enrolled.
    pub agent_id: String,
    /// The host's address, empty if it has none.
    pub ip: String,
    /// BlueKing's cloud area.
    pub cloud_id: i32,
    /// Business.
    pub biz_id: i32,
    /// The host's id in CMDB.
    pub host_id: i32,
    /// Default data id of some collectors.
    pub static_data_id: i32,
    /// Tenant.
    pub tenant_id: String,
}

impl AgentInfo {
    /// Who the agent is, and what its configuration adds.
    pub fn new(agent_id: &str, ip: &str, cloud_id: i32, config: &InputsConfig) -> AgentInfo {
        AgentInfo {
            agent_id: agent_id.to_owned(),
            ip: ip.to_owned(),
            cloud_id,
            biz_id: config.biz_id,
            host_id: config.host_id,
            static_data_id: config.static_data_id,
            tenant_id: config.tenant_id.clone(),
        }
    }

    fn answer(&self) -> Vec<u8> {
        let json = serde_json::json!({
            "bizid": self.biz_id,
            "bk_biz_id": self.biz_id,
            "cloudid": self.cloud_id,
            "cloud_id": self.cloud_id,
            "ip": self.ip,
            "bk_agent_id": self.agent_id,
            "bk_tenant_id": self.tenant_id,
            "static_dataid": self.static_data_id,
            "hostid": self.host_id,
        });
        encode_info(json.to_string().as_bytes())
    }
}

/// How old an answer may be. The most eager clients ask every 3 s (agent.md 1.5); a burst of
/// questions costs one look at the host.
const FRESH_MS: u64 = 1_000;

/// The answer to collectors, shared by all connections. It follows the host while the agent runs:
/// a question makes it look again when the last look is older than [`FRESH_MS`], so an agent that
/// nobody asks does nothing.
#[derive(Clone)]
pub struct InfoCell(Rc<Inner>);

struct Inner {
    look: Box<dyn Fn() -> AgentInfo>,
    now: RefCell<Told>,
}

struct Told {
    info: AgentInfo,
    answer: Rc<[u8]>,
    looked_ms: u64,
}

impl InfoCell {
    /// `look` tells what is true at the moment; it must not wait.
    pub fn new(look: impl Fn() -> AgentInfo + 'static) -> InfoCell {
        let info = look();
        let answer = info.answer().into();
        let told = Told { info, answer, looked_ms: clock::now_ms() };
        InfoCell(Rc::new(Inner { look: Box::new(look), now: RefCell::new(told) }))
    }

    /// Header and JSON.
    pub fn answer(&self) -> Rc<[u8]> {
        let now_ms = clock::now_ms();
        let mut told = self.0.now.borrow_mut();
        if now_ms >= told.looked_ms + FRESH_MS {
            told.looked_ms = now_ms;
            let mut info = (self.0.look)();
            if info.ip.is_empty() {
                // An interface that is being set up again: collectors keep what they know.
                info.ip.clone_from(&told.info.ip);
            }
            if info != told.info {
                tracing::info!(ip = info.ip, agent = info.agent_id, "collectors are told anew");
                told.answer = info.answer().into();
                told.info = info;
            }
        }
        told.answer.clone()
    }
}
