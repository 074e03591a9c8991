//! How fast a dead instance comes back.

use std::time::Duration;

/// The delays between restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffSettings {
    /// The longest first delay; each further death in a row doubles it.
    pub base: Duration,
    /// No delay is longer.
    pub cap: Duration,
    /// An instance that lived so long starts again from `base`.
    pub stable: Duration,
}

impl Default for BackoffSettings {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(200),
            cap: Duration::from_secs(30),
            stable: Duration::from_secs(60),
        }
    }
}

/// The deaths in a row of one instance.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    deaths: u32,
}

impl Backoff {
    /// Half of the delay is fixed and half is drawn, so that instances that died together do not return together
    /// (the "equal jitter" of the AWS Architecture Blog, "Exponential Backoff And Jitter").
    pub(crate) fn delay(&mut self, settings: &BackoffSettings, lived: Duration, jitter: f64) -> Duration {
        if lived >= settings.stable {
            self.deaths = 0;
        }
        let factor = 2_u32.saturating_pow(self.deaths);
        self.deaths = self.deaths.saturating_add(1);
        let longest = settings.base.saturating_mul(factor).min(settings.cap);
        longest.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BackoffSettings = BackoffSettings {
        base: Duration::from_millis(200),
        cap: Duration::from_secs(1),
        stable: Duration::from_secs(60),
    };

    #[test]
    fn delays_double_up_to_the_cap_and_start_again_after_a_stable_minute() {
        let mut backoff = Backoff::default();
        let mut next = |lived: u64| backoff.delay(&SETTINGS, Duration::from_secs(lived), 1.0).as_millis();
        assert_eq!([next(0), next(0), next(0), next(0), next(59)], [200, 400, 800, 1000, 1000]);
        assert_eq!([next(60), next(0)], [200, 400]);
    }

    #[test]
    fn jitter_halves_a_delay_at_most() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.delay(&SETTINGS, Duration::ZERO, 0.0), Duration::from_millis(100));
        assert_eq!(backoff.delay(&SETTINGS, Duration::ZERO, 0.5), Duration::from_millis(300));
    }

    #[test]
    fn endless_deaths_stay_at_the_cap() {
        let mut backoff = Backoff { deaths: u32::MAX };
        assert_eq!(backoff.delay(&SETTINGS, Duration::ZERO, 1.0), SETTINGS.cap);
    }
}
