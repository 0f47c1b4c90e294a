package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/server"
)

func newQueuesCmd() *cobra.Command {
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "queues", Short: "List the queues of the running broker", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := askQueues(cmd.Context(), data)
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "VHOST\tNAME\tTYPE\tREADY\tUNACKED\tCONSUMERS")
			for _, q := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\n", q.VHost, q.Name, q.Type, q.Ready, q.Unacked, q.Consumers)
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&data, "data", "sluice-data", "data directory of the broker")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func askQueues(ctx context.Context, data string) (list []broker.QueueFigure, err error) {
	path, done, err := server.SocketPath(data)
	if err != nil {
		return nil, err
	}
	defer done()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sluice/queues", nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no broker is running on data directory %s: %w", data, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the broker answered %s", res.Status)
	}
	return list, json.NewDecoder(res.Body).Decode(&list)
}
