package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sluicemq/sluice/internal/bench"
)

// defaultURL is the broker that commands talk to unless --url says otherwise.
const defaultURL = bench.DefaultURL

// dialBroker opens a connection and a channel. ctx bounds the connecting only.
func dialBroker(ctx context.Context, brokerURL, name string) (*amqp.Connection, *amqp.Channel, error) {
	props := amqp.NewConnectionProperties()
	props.SetClientConnectionName(name)
	conn, err := amqp.DialConfig(brokerURL, amqp.Config{
		Properties: props,
		Heartbeat:  10 * time.Second,
		Dial: func(network, addr string) (net.Conn, error) {
			d := net.Dialer{Timeout: 10 * time.Second}
			nc, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			// For the handshake; the client clears it afterwards.
			return nc, nc.SetDeadline(time.Now().Add(10 * time.Second))
		},
	})
	if err != nil {
		return nil, nil, err
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, ch, nil
}

// explain adds to a client-side error what a person can do about it, where that
// is known. The URL is shown without its password.
func explain(err error, brokerURL string) error {
	if err == nil {
		return nil
	}
	shown := redact(brokerURL)
	var dns *net.DNSError
	code := closeCode(err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no broker answers at %s: is it running there? (start one with: sluice serve): %w", shown, err)
	case errors.As(err, &dns):
		return fmt.Errorf("the host in %s is unknown: %w", shown, err)
	case errors.Is(err, amqp.ErrCredentials) || errors.Is(err, amqp.ErrSASL) || code == amqp.AccessRefused && isLogin(err):
		return fmt.Errorf("the broker at %s refused the login: check user and password in --url (guest may log in from loopback only): %w", shown, err)
	case errors.Is(err, amqp.ErrVhost) || code == amqp.NotAllowed:
		return fmt.Errorf("the broker at %s refused the virtual host in --url: %w", shown, err)
	case code == amqp.NotFound && strings.Contains(err.Error(), "no queue"):
		return fmt.Errorf("%w (publish --queue NAME --declare creates a queue)", err)
	case code == amqp.PreconditionFailed:
		return fmt.Errorf("%w (it exists with other settings, or a setting is invalid)", err)
	case code == amqp.ResourceLocked:
		return fmt.Errorf("%w (another connection has it for itself)", err)
	case errors.Is(err, amqp.ErrClosed) || errors.Is(err, io.EOF):
		return fmt.Errorf("the broker at %s closed the connection: %w", shown, err)
	}
	return err
}

// closeCode returns the code of the close method that an error is from, else 0.
func closeCode(err error) int {
	var ae *amqp.Error
	var be *bench.BrokerError
	switch {
	case errors.As(err, &ae):
		return ae.Code
	case errors.As(err, &be):
		return int(be.Code)
	}
	return 0
}

// isLogin reports whether a refusal is of the login rather than of a resource.
// Only the text tells.
func isLogin(err error) bool {
	var be *bench.BrokerError
	return errors.As(err, &be) && strings.Contains(be.Text, "Login was refused")
}

// redact returns a broker URL without its password.
func redact(brokerURL string) string {
	u, err := url.Parse(brokerURL)
	if err != nil {
		return "the given --url" // not even a URL: don't risk printing a password
	}
	return u.Redacted()
}
