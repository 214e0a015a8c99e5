//! The bounded way to the workers.
//!
//! The bound counts bytes and messages that a worker has not taken. What agents send is refused
//! beyond it, so that their sessions stop reading; what the process itself says (tables, taps, the
//! end of a session) is few and always taken.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use skein_wire::ids::AgentId;

use super::ToRouter;

/// Messages that may wait for one worker. An opened lane or statistic has about 100 bytes: 1.6 MiB.
pub const QUEUE_MESSAGES_MAX: usize = 16_384;

/// What a message counts beside its body.
const MESSAGE_BYTES: usize = 128;

/// The sending side of all queues.
#[derive(Clone, Debug)]
pub struct RouterHandle {
    queues: Arc<[Queue]>,
}

#[derive(Debug)]
struct Queue {
    sender: flume::Sender<ToRouter>,
    depth: Arc<Depth>,
}

/// How full a queue is, and who waits for room.
#[derive(Debug)]
struct Depth {
    bytes_max: usize,
    bytes: AtomicUsize,
    messages: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
    anyone_waits: AtomicUsize,
}

/// The receiving side of one queue.
#[derive(Debug)]
pub struct QueueReceiver {
    receiver: flume::Receiver<ToRouter>,
    depth: Arc<Depth>,
}

/// A queue for each worker.
pub fn queues(workers: usize, bytes_max: usize) -> (RouterHandle, Vec<QueueReceiver>) {
    let (queues, receivers): (Vec<_>, Vec<_>) = (0..workers)
        .map(|_| {
            let (sender, receiver) = flume::unbounded();
            let depth = Arc::new(Depth {
                bytes_max,
                bytes: AtomicUsize::new(0),
                messages: AtomicUsize::new(0),
                waiting: Mutex::default(),
                anyone_waits: AtomicUsize::new(0),
            });
            let queue = Queue { sender, depth: depth.clone() };
            (queue, QueueReceiver { receiver, depth })
        })
        .unzip();
    (RouterHandle { queues: queues.into() }, receivers)
}

impl RouterHandle {
    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.queues.len()
    }

    /// The worker that owns an agent's lanes.
    pub fn worker_of(&self, agent: &AgentId) -> usize {
        worker_of(agent, self.queues.len())
    }

    /// Hands a message over, or gives it back when the worker has enough to do.
    pub fn try_send(&self, worker: usize, message: ToRouter) -> Result<(), ToRouter> {
        let Some(queue) = self.queues.get(worker) else { return Err(message) };
        if is_bounded(&message) && queue.depth.is_full() {
            return Err(message);
        }
        queue.depth.add(&message);
        queue.sender.send(message).map_err(|refused| refused.0)
    }

    /// Waits until a worker has room. Another may take it first: try, and wait again.
    pub async fn ready(&self, worker: usize) {
        let Some(queue) = self.queues.get(worker) else { return };
        std::future::poll_fn(|context| {
            if !queue.depth.is_full() {
                return Poll::Ready(());
            }
            queue.depth.wait(context.waker());
            // The worker may have made room before it could see us waiting.
            if queue.depth.is_full() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Tells every worker.
    pub fn broadcast(&self, message: impl Fn() -> ToRouter) {
        for worker in 0..self.queues.len() {
            // Only what agents send is refused.
            let _ = self.try_send(worker, message());
        }
    }

    /// Bytes and messages that wait for a worker.
    pub fn depth(&self, worker: usize) -> (usize, usize) {
        self.queues.get(worker).map_or((0, 0), |queue| {
            let depth = &queue.depth;
            (depth.bytes.load(Ordering::Relaxed), depth.messages.load(Ordering::Relaxed))
        })
    }
}

/// FNV-1a: stable across processes and versions, because checkpoints are dealt by it.
pub fn worker_of(agent: &AgentId, workers: usize) -> usize {
    let hash = agent.as_str().bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV are its weakest.
    ((hash ^ (hash >> 32)) % workers.max(1) as u64) as usize
}

fn is_bounded(message: &ToRouter) -> bool {
    matches!(message, ToRouter::Open { .. } | ToRouter::Batch { .. } | ToRouter::Stat { .. })
}

fn cost(message: &ToRouter) -> usize {
    match message {
        ToRouter::Batch { body, .. } => MESSAGE_BYTES + body.len(),
        _ => MESSAGE_BYTES,
    }
}

impl Depth {
    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::SeqCst) >= self.bytes_max
            || self.messages.load(Ordering::SeqCst) >= QUEUE_MESSAGES_MAX
    }

    fn add(&self, message: &ToRouter) {
        self.bytes.fetch_add(cost(message), Ordering::SeqCst);
        self.messages.fetch_add(1, Ordering::SeqCst);
    }

    fn remove(&self, message: &ToRouter) {
        self.bytes.fetch_sub(cost(message), Ordering::SeqCst);
        self.messages.fetch_sub(1, Ordering::SeqCst);
        if self.anyone_waits.load(Ordering::SeqCst) > 0 && !self.is_full() {
            self.wake();
        }
    }

    fn wait(&self, waker: &Waker) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        self.anyone_waits.store(waiting.len(), Ordering::SeqCst);
    }

    fn wake(&self) {
        let woken = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            self.anyone_waits.store(0, Ordering::SeqCst);
            std::mem::take(&mut *waiting)
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl QueueReceiver {
    /// The next message, if one waits.
    pub fn try_next(&self) -> Option<ToRouter> {
        let message = self.receiver.try_recv().ok()?;
        self.depth.remove(&message);
        Some(message)
    }

    /// Waits for a message; `None` after the last sender is gone.
    pub async fn next(&self) -> Option<ToRouter> {
        let message = self.receiver.recv_async().await.ok()?;
        self.depth.remove(&message);
        Some(message)
    }

    /// Adds the next message to what `selector` waits for; `None` after the last sender is gone.
    pub fn select<'a, T>(
        &'a self,
        selector: flume::Selector<'a, T>,
        mut map: impl FnMut(Option<ToRouter>) -> T + 'a,
    ) -> flume::Selector<'a, T> {
        selector.recv(&self.receiver, move |received| {
            map(received.ok().inspect(|message| self.depth.remove(message)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_spread_over_workers_and_stay_there() {
        let mut counts = [0; 3];
        for index in 0..3000 {
            let agent = AgentId::parse(&format!("host-{index:05}")).unwrap();
            counts[worker_of(&agent, 3)] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
        // Checkpoints are dealt by this: it may not change between versions.
        assert_eq!(worker_of(&AgentId::parse("agent-1").unwrap(), 1000), 530);
    }

    #[test]
    fn a_full_queue_refuses_batches_takes_control_and_wakes_who_waits() {
        let (handle, receivers) = queues(1, 1000);
        let session = crate::router::SessionRef { shard: 0, conn: 1 };
        let agent = AgentId::parse("a").unwrap();
        let open = || ToRouter::Open {
            session,
            agent: agent.clone(),
            open: skein_wire::data::LaneOpen {
                data_id: skein_wire::ids::DataId(1),
                epoch: skein_wire::ids::Epoch(1),
                first: skein_wire::ids::Sequence(0),
                next: skein_wire::ids::Sequence(0),
            },
        };
        let mut sent = 0;
        while handle.try_send(0, open()).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, 1000usize.div_ceil(MESSAGE_BYTES));
        handle.try_send(0, ToRouter::TapStop(1)).unwrap();

        let woken = Arc::new(AtomicUsize::new(0));
        struct Count(Arc<AtomicUsize>);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let waker = Waker::from(Arc::new(Count(woken.clone())));
        let mut context = std::task::Context::from_waker(&waker);
        let mut ready = std::pin::pin!(handle.ready(0));
        assert!(ready.as_mut().poll(&mut context).is_pending());
        while receivers[0].try_next().is_some() {}
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert!(ready.as_mut().poll(&mut context).is_ready());
        assert_eq!(handle.depth(0), (0, 0));
    }
}
