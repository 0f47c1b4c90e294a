//go:build !plantedbugs

package engine

import "github.com/sluicemq/sluice/internal/msg"

// reroute leaves a transfer as it is: where it goes was decided when it was committed.
func reroute(sub msg.Submission) msg.Submission { return sub }
