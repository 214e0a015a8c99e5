//! What collectors are told of the agent (agent.md 1.5): the union of the keys that any known
//! client reads, all numbers within 32 bits.

use std::cell::RefCell;
use std::rc::Rc;

use super::InputsConfig;
use super::gse::encode_info;

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

/// The answer as it stands now, ready to be written; shared by all connections.
#[derive(Clone, Debug)]
pub struct InfoCell(Rc<RefCell<Rc<[u8]>>>);

impl InfoCell {
    /// Starts with what is known.
    pub fn new(info: &AgentInfo) -> InfoCell {
        InfoCell(Rc::new(RefCell::new(info.answer().into())))
    }

    /// The agent knows more, for instance another address.
    pub fn set(&self, info: &AgentInfo) {
        self.0.replace(info.answer().into());
    }

    /// Header and JSON.
    pub fn answer(&self) -> Rc<[u8]> {
        self.0.borrow().clone()
    }
}
