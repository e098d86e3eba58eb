//! What several actions share.

pub mod cordoning;
pub mod paused;
pub mod restart;
pub mod suspension;
