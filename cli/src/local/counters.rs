//! Counters of the processes of a local fleet, read from their `/metrics`.

use std::time::Duration;

use crate::error::CliError;

const TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Counters of one process at one moment.
#[derive(Clone, Debug)]
pub struct Counters(String);

impl Counters {
    /// Asks the process whose metrics are at this `ip:port`.
    pub fn read(address: &str) -> Result<Self, CliError> {
        let url = format!("http://{address}/metrics");
        let agent = ureq::Agent::new_with_config(
            ureq::Agent::config_builder().timeout_global(Some(TIME_MAX)).proxy(None).build(),
        );
        let read = || {
            let mut response = agent.get(&url).call()?;
            response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()
        };
        let text: Result<String, ureq::Error> = read();
        text.map(Self).map_err(|error| CliError::Local(format!("cannot read {url}: {error}")))
    }

    /// The sum over all labels; 0 before anything was counted.
    pub fn sum(&self, name: &str) -> u64 {
        let samples = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (named, _) = series.split_once('{').unwrap_or((series, ""));
            (named == name).then(|| value.parse::<f64>().unwrap_or_default() as u64)
        });
        samples.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_name_are_added() {
        let text = "# TYPE a_total counter\na_total 7\na_total{x=\"y z\"} 1.5e1\na_total_b 100\n";
        let counters = Counters(text.to_owned());
        assert_eq!([counters.sum("a_total"), counters.sum("b")], [22, 0]);
    }
}
