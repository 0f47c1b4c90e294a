package shard

import "time"

// slewMax is how far shard time may run faster or slower than the monotonic clock to
// approach the wall clock, per unit of time.
const slewMax = 0.05

// clock is shard time on the leader: it starts at the last batch's time or the wall
// clock, whichever is later, advances with the monotonic clock and is slewed towards
// the wall. It never goes backwards and a jump of the wall clock does not carry it
// along, so one bad time source neither expires everything nor freezes expiry.
type clock struct {
	last int64         // shard time of the last reading, ms
	rest time.Duration // fraction of a ms not yet counted
	at   time.Time     // when last was read, with the monotonic reading
}

// begin starts the clock for a term; last is the shard time of the last applied batch,
// wall what the wall clock says, in ms since 1970.
func (c *clock) begin(last int64, now time.Time, wall int64) {
	c.last, c.rest, c.at = max(last, wall), 0, now
}

// read advances the clock to now and returns shard time in ms since 1970.
func (c *clock) read(now time.Time, wall int64) int64 {
	passed := now.Sub(c.at) // monotonic where now carries it
	if passed <= 0 {
		return c.last
	}
	c.at = now
	off := time.Duration(wall-c.last) * time.Millisecond // wall ahead of us, after passed
	limit := time.Duration(float64(passed) * slewMax)
	step := passed + min(max(off-passed, -limit), limit) + c.rest
	ms := step / time.Millisecond
	c.rest = step - ms*time.Millisecond
	c.last += int64(ms)
	return c.last
}
