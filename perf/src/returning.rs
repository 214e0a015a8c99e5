//! Agents that come back: whenever their signal session ends they open it again, at once and as
//! often as it takes. What real agents soften by jitter and slots arrives here as one storm.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use skein_wire::hello::ChannelKind;
use skein_wire::ids::Instance;
use tokio::sync::{Semaphore, watch};

use crate::agents;
use crate::authority::Authority;
use crate::channel;
use crate::lab::{Addresses, Lab};

/// Pause before another attempt after one that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What the fleet has seen.
#[derive(Debug, Default)]
pub struct State {
    /// Sessions that are open now.
    pub open: usize,
    /// Sessions ever opened.
    pub opened: usize,
    /// Sessions that ended without having been told to.
    pub unasked: usize,
    /// Attempts that failed; each was followed by another.
    pub failed: usize,
    /// The first few different reasons of failures and unasked ends.
    pub reasons: Vec<String>,
}

/// What all agents are told.
#[derive(Debug, Clone)]
struct Order {
    /// Where the server is; `None` while there is none.
    addresses: Option<Addresses>,
    /// Rises with each order to reset.
    generation: u64,
    /// Who resets.
    reset: Range<usize>,
}

/// The fleet. Must live in a `LocalSet`, whose end ends it.
pub struct Fleet {
    /// What it has seen.
    pub state: Rc<RefCell<State>>,
    count: usize,
    orders: watch::Sender<Order>,
}

impl Fleet {
    /// Agents `0..count`, at most `parallel` handshakes at a time; they connect from now on.
    pub fn start(
        authority: &Authority,
        addresses: Addresses,
        count: usize,
        heartbeat: Duration,
        parallel: usize,
    ) -> anyhow::Result<Self> {
        let order = Order { addresses: Some(addresses), generation: 0, reset: 0..0 };
        let (orders, told) = watch::channel(order);
        let state = Rc::new(RefCell::new(State::default()));
        let gate = Arc::new(Semaphore::new(parallel));
        for index in 0..count {
            let agent = Agent {
                index,
                config: authority.client(&agents::name(index))?,
                instance: instance(index),
                heartbeat,
                gate: gate.clone(),
                state: state.clone(),
                told: told.clone(),
            };
            tokio::task::spawn_local(agent.live());
        }
        Ok(Self { state, count, orders })
    }

    /// There is no server until [`Self::moved`].
    pub fn server_gone(&self) {
        self.orders.send_modify(|order| order.addresses = None);
    }

    /// The server is here now.
    pub fn moved(&self, addresses: Addresses) {
        self.orders.send_modify(|order| order.addresses = Some(addresses));
    }

    /// These agents end their connections by a TCP reset and come back.
    pub fn reset(&self, agents: Range<usize>) {
        self.orders.send_modify(|order| {
            order.generation += 1;
            order.reset = agents;
        });
    }

    /// Sessions opened so far, to be given to [`Self::wait_opened`].
    pub fn opened(&self) -> usize {
        self.state.borrow().opened
    }

    /// Waits until `count` more sessions than `before` were opened and all are open; the times
    /// until 99 % and all of them since `since`. What the data process says is read meanwhile, as
    /// control would.
    pub async fn wait_opened(
        &self,
        lab: &mut Lab,
        before: usize,
        count: usize,
        since: Instant,
    ) -> anyhow::Result<[Duration; 2]> {
        let deadline = Instant::now() + Duration::from_secs(120);
        let (mut most, mut seen) = (None, Vec::new());
        loop {
            let (open, back) = (self.state.borrow().open, self.opened() - before);
            if back * 100 >= count * 99 {
                most.get_or_insert_with(|| since.elapsed());
            }
            if let (Some(most), true) = (most, back >= count && open == self.count) {
                return Ok([most, since.elapsed()]);
            }
            ensure!(
                Instant::now() < deadline,
                "only {open} of {} agents are open; {:?}",
                self.count,
                self.state.borrow().reasons
            );
            seen.clear();
            let read = lab.inbox.burst(&mut seen);
            if let Ok(read) = tokio::time::timeout(Duration::from_millis(2), read).await {
                read?;
            }
        }
    }
}

/// The instance nonce of agent `index`, for its other channels.
pub fn instance(index: usize) -> Instance {
    let mut instance = Instance([1; 16]);
    instance.0[..8].copy_from_slice(&(index as u64).to_be_bytes());
    instance
}

struct Agent {
    index: usize,
    config: Arc<rustls::ClientConfig>,
    instance: Instance,
    heartbeat: Duration,
    gate: Arc<Semaphore>,
    state: Rc<RefCell<State>>,
    told: watch::Receiver<Order>,
}

impl Agent {
    /// Ends only with the `LocalSet`, or when the fleet is dropped.
    async fn live(mut self) {
        let mut generation = 0;
        while let Some(addresses) = self.server().await {
            let mut stream = match self.open(addresses).await {
                Ok(stream) => stream,
                Err(error) => {
                    self.note(&error, |state| state.failed += 1);
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
            };
            {
                let mut state = self.state.borrow_mut();
                state.open += 1;
                state.opened += 1;
            }
            let beat = agents::beat(&mut stream, self.index, self.heartbeat);
            let ended = tokio::select! {
                ended = beat => Some(ended),
                () = told(&mut self.told, self.index, &mut generation) => None,
            };
            self.state.borrow_mut().open -= 1;
            match ended {
                None => channel::reset(stream),
                Some(ended) => {
                    let reason = ended.err().unwrap_or_else(|| anyhow::anyhow!("it ended"));
                    self.note(&reason, |state| state.unasked += 1);
                }
            }
        }
    }

    async fn server(&mut self) -> Option<Addresses> {
        let order = self.told.wait_for(|order| order.addresses.is_some()).await.ok()?;
        order.addresses
    }

    async fn open(&self, addresses: Addresses) -> anyhow::Result<agents::Stream> {
        let _permit = self.gate.acquire().await?;
        let host = (self.index / 4000) as u8 + 1;
        let address = addresses.signal(host);
        channel::open(address, self.config.clone(), ChannelKind::Signal, self.instance).await
    }

    fn note(&self, error: &anyhow::Error, count: impl Fn(&mut State)) {
        let mut state = self.state.borrow_mut();
        count(&mut state);
        let reason = format!("{error:#}");
        if state.reasons.len() < 5 && !state.reasons.contains(&reason) {
            state.reasons.push(reason);
        }
    }
}

/// Returns when agent `index` is told to reset; for ever pending when the fleet is gone.
async fn told(told: &mut watch::Receiver<Order>, index: usize, generation: &mut u64) {
    let new = told.wait_for(|order| order.generation > *generation && order.reset.contains(&index));
    match new.await {
        Ok(order) => *generation = order.generation,
        Err(_) => std::future::pending().await,
    }
}
