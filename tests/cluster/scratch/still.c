/* A workload whose image holds this file and nothing else: no shell, no cat, no /etc, no resolver. */

#include <signal.h>
#include <unistd.h>

static void end(int number)
{
	(void)number;
	_exit(0);
}

int main(void)
{
	signal(SIGTERM, end); /* process 1 has no default action */
	for (;;)
		pause();
}
