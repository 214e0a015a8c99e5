//! Which ended jobs are forgotten: the oldest first, until everything is within its bounds.

/// What bounds a history.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// An ended job is kept this long.
    pub keep_ms: i64,
    /// Ended jobs.
    pub jobs_max: usize,
    /// Hosts of all jobs, running ones too.
    pub hosts_max: usize,
    /// Bytes of all jobs outside the store.
    pub bytes_max: u64,
}

/// An ended job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ended<Id> {
    /// When it ended.
    pub ended_ms: i64,
    /// Its id.
    pub id: Id,
    /// Its hosts.
    pub hosts: usize,
    /// Its bytes outside the store.
    pub bytes: u64,
}

/// The jobs to forget now; `hosts` and `bytes` are those of all jobs.
pub fn beyond<Id: Copy + Ord>(
    mut ended: Vec<Ended<Id>>,
    mut hosts: usize,
    mut bytes: u64,
    bounds: &Bounds,
    now_ms: i64,
) -> Vec<Id> {
    ended.sort_unstable();
    let mut jobs = ended.len();
    let surplus = ended.iter().take_while(|job| {
        let is_old = job.ended_ms.saturating_add(bounds.keep_ms) < now_ms;
        let is_too_much =
            jobs > bounds.jobs_max || hosts > bounds.hosts_max || bytes > bounds.bytes_max;
        jobs -= 1;
        hosts = hosts.saturating_sub(job.hosts);
        bytes = bytes.saturating_sub(job.bytes);
        is_old || is_too_much
    });
    surplus.map(|job| job.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { keep_ms: 1_000, jobs_max: 3, hosts_max: 50, bytes_max: 500 };

    fn job(id: u8, ended_ms: i64, hosts: usize, bytes: u64) -> Ended<u8> {
        Ended { ended_ms, id, hosts, bytes }
    }

    #[test]
    fn age_number_hosts_and_bytes_each_bound_the_history() {
        let four = vec![job(4, 40, 1, 1), job(1, 10, 1, 1), job(2, 20, 1, 1), job(3, 30, 1, 1)];
        assert_eq!(beyond(four.clone(), 4, 4, &BOUNDS, 50), [1], "one too many");
        assert_eq!(beyond(four.clone(), 4, 4, &BOUNDS, 1_025), [1, 2], "two too old");
        assert_eq!(beyond(four.clone(), 52, 4, &BOUNDS, 50), [1, 2], "hosts of running jobs count");
        assert_eq!(beyond(four[..2].to_vec(), 2, 501, &BOUNDS, 50), [1]);
        assert!(beyond(four[..3].to_vec(), 3, 3, &BOUNDS, 50).is_empty());
    }
}
